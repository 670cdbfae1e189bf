#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace engine {

/// One block of a tensor type of GGUF.
struct block_facts {
  char const* name;
  std::int64_t elements;
  std::int64_t bytes;
};

/// Facts of a type by its number in the format; nothing for types that this engine does not read.
std::optional<block_facts> facts_of(std::uint32_t type);

/// Name of a type, whether or not this engine reads it; "number N" for those that the format does not have.
std::string type_name(std::uint32_t type);

/// Decodes `elements` numbers, a whole number of blocks, of a type that facts_of knows. `blocks` need not be aligned.
void dequantize(std::uint32_t type, std::byte const* blocks, std::int64_t elements, float* to);

}  // namespace engine
