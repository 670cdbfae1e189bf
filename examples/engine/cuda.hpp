#pragma once
#include <memory>
#include <string>

#include "engine/backend.hpp"

namespace engine {

/// Products by cuBLAS in f32 on the current device, a prompt's attention there too.
///
/// Errors  std::runtime_error, cellar::cuda_error
std::unique_ptr<backend> cuda_backend();

/// The name of the current device.
std::string cuda_device_name();

}  // namespace engine
