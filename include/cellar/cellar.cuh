#pragma once
/// cellar.hpp and the CUDA half. Needs nvcc 13 or newer and C++20.
#include "cellar/cellar.hpp"
#include "cellar/cuda/append.hpp"
#include "cellar/cuda/attend.hpp"
#include "cellar/cuda/device_memory.cuh"
#include "cellar/cuda/executor.cuh"
#include "cellar/cuda/sequence.hpp"
