# SPDX-License-Identifier: MIT
# Draws the picture of heed_embed's own lines, and compares it with the one in docs/.
#
#   cmake -D program=heed_embed -D model=DIR -D expected=docs/similarity.svg -P check_similarity.cmake
set(drawn similarity.svg)
execute_process(COMMAND ${program} --demo --model ${model} --matrix ${drawn} COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${drawn} ${expected} RESULT_VARIABLE different)
if(different)
  message(FATAL_ERROR "${drawn} is not ${expected}: if it is right, copy it there")
endif()
