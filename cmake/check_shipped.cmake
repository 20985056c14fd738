# SPDX-License-Identifier: MIT
# Runs heed_story without arguments: it must tell something, in words of the text it was trained on.
#
#   cmake -D program=heed_story -P check_shipped.cmake
foreach(seed 1 2)
  set(arguments "")
  if(seed GREATER 1)
    set(arguments --seed ${seed})
  endif()
  execute_process(COMMAND ${program} ${arguments} OUTPUT_VARIABLE told COMMAND_ERROR_IS_FATAL ANY)
  string(LENGTH "${told}" length)
  if(length LESS 200 OR NOT told MATCHES "^Alice")
    message(FATAL_ERROR "told [${told}]")
  endif()
  # A model that learned nothing finds few of these; text of this length has about 20.
  string(REGEX MATCHALL " (the|a|to|and|of|it|in|she|said|was|I|you|that|her|at|as|he) " common "${told}")
  list(LENGTH common count)
  if(count LESS 6)
    message(FATAL_ERROR "only ${count} common words in [${told}]")
  endif()
  message(STATUS "told ${length} characters, ${count} common words")
endforeach()
