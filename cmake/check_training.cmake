# SPDX-License-Identifier: MIT
# Trains a few steps with one thread and with two: the loss falls, and both give the same bits.
#
#   cmake -D program=heed_train -D folder=FOLDER -P check_training.cmake
foreach(threads 1 2)
  set(out ${folder}/trained_${threads})
  execute_process(
    COMMAND ${program} --steps 12 --batch 3 --context 64 --layers 2 --threads ${threads} --out ${out}
    OUTPUT_VARIABLE said_${threads} COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "step [0-9]+ loss [^\n]+" losses_${threads} "${said_${threads}}")
  file(SHA256 ${out}.bin weights_${threads})
  if(NOT EXISTS ${out}.svg OR NOT EXISTS ${out}.tok)
    message(FATAL_ERROR "no curve or no tokenizer at ${out}")
  endif()
endforeach()
if(NOT losses_1 STREQUAL losses_2 OR NOT weights_1 STREQUAL weights_2)
  message(FATAL_ERROR "one thread:\n${losses_1}\ntwo threads:\n${losses_2}")
endif()
list(GET losses_1 0 first)
list(GET losses_1 -1 last)
string(REGEX REPLACE ".*loss ([0-9.]+) .*" "\\1" before "${first}")
string(REGEX REPLACE ".*loss ([0-9.]+) .*" "\\1" after "${last}")
if(NOT after LESS before)
  message(FATAL_ERROR "the loss went from ${before} to ${after}")
endif()
message(STATUS "the loss went from ${before} to ${after} bits, with one thread as with two")
