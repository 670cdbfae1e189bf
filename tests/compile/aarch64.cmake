# cmake -DCOMPILER=... -DEMULATOR=... -DINCLUDE=... -DEXAMPLES=folder -DSCRATCH=folder -P aarch64.cmake: examples that check their own results are compiled for
# AArch64 and run by the emulator.
cmake_minimum_required(VERSION 3.22)
if(NOT COMPILER OR NOT EMULATOR)
  message("SKIPPED: there is no aarch64-linux-gnu-g++, or no qemu-aarch64")
  return()
endif()
file(MAKE_DIRECTORY ${SCRATCH})
foreach(example compose_scheme sequence_life write_your_own_codec)
  execute_process(COMMAND ${COMPILER} -std=c++20 -O1 -static -Wall -Wextra -Werror -I${INCLUDE} ${EXAMPLES}/${example}.cpp -o ${SCRATCH}/${example}
                  RESULT_VARIABLE code OUTPUT_VARIABLE said ERROR_VARIABLE said)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${example} does not compile for AArch64:\n${said}")
  endif()
  execute_process(COMMAND ${EMULATOR} ${SCRATCH}/${example} RESULT_VARIABLE code OUTPUT_VARIABLE said ERROR_VARIABLE said)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${example} fails on AArch64:\n${said}")
  endif()
endforeach()
