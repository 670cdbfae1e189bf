# cmake -DCOMPILER=... -DINCLUDE=... -DSCRATCH=folder -P no_cuda.cmake: cellar.hpp pulls in no CUDA header, though all of them could be found.
cmake_minimum_required(VERSION 3.22)
foreach(header cuda.h cuda_runtime.h cuda_runtime_api.h cuda_fp16.h cuda_bf16.h cuda_fp8.h cuda_pipeline.h cooperative_groups.h cub/cub.cuh thrust/version.h
               cuda/std/version cuda/barrier cuda/pipeline)
  file(WRITE ${SCRATCH}/cuda_headers/${header} "#error the CUDA header ${header} is reachable\n")
endforeach()
file(WRITE ${SCRATCH}/umbrella.cpp "#include \"cellar/cellar.hpp\"\n")
execute_process(COMMAND ${COMPILER} -std=c++20 -I${INCLUDE} -I${SCRATCH}/cuda_headers -M ${SCRATCH}/umbrella.cpp
                RESULT_VARIABLE code OUTPUT_VARIABLE reached ERROR_VARIABLE error)
if(NOT code EQUAL 0)
  message(FATAL_ERROR "${error}")
endif()
if(reached MATCHES "[^ \n]*(cuda_headers/|cellar/cuda/|\\.cuh)[^ \n]*")
  message(FATAL_ERROR "cellar.hpp reaches ${CMAKE_MATCH_0}")
endif()
