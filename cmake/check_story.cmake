# SPDX-License-Identifier: MIT
# Runs heed_story greedily with every cache that keeps floats, and compares its text, byte for byte,
# with the recorded one.
#
#   cmake -D program=heed_story -D model=FOLDER -P check_story.cmake
foreach(case empty-prompt once-upon-a-time)
  set(prompt "")
  if(EXISTS ${model}/golden/${case}.prompt.txt)
    file(READ ${model}/golden/${case}.prompt.txt prompt)
  endif()
  foreach(cache contiguous paged offloaded)
    execute_process(
      COMMAND ${program} --model ${model}/stories260K.bin --tokenizer ${model}/tok512.bin --prompt
              "${prompt}" --steps 256 --cache ${cache}
      OUTPUT_VARIABLE told
      COMMAND_ERROR_IS_FATAL ANY)
    file(READ ${model}/golden/${case}.txt golden)
    if(NOT told STREQUAL golden)
      message(FATAL_ERROR "${case}, ${cache}: told\n[${told}]\nand not\n[${golden}]")
    endif()
    message(STATUS "${case}, ${cache}: as recorded")
  endforeach()
endforeach()

# What it attended to, as a picture with a label a token.
set(picture ${CMAKE_CURRENT_BINARY_DIR}/heed_story_attention.svg)
execute_process(
  COMMAND ${program} --model ${model}/stories260K.bin --tokenizer ${model}/tok512.bin --prompt
          "Once upon a time" --steps 40 --layer 2 --head 3 --draw ${picture}
  OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
file(READ ${picture} drawn)
if(NOT drawn MATCHES "layer 2: head 3, 41 queries by 41 keys.*fill-opacity.*>Once</text>")
  message(FATAL_ERROR "${picture} does not show 41 tokens from \"Once\" on")
endif()
