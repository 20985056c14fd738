# SPDX-License-Identifier: MIT
# Passes when the compiler refuses a file with the message that the file expects.
#
#   cmake -D source=FILE -D before=HEADER -P check_compile_fail.cmake -- COMPILER OPTION...
#
# A file without a line `// expect: REGEX` is a control: it must compile. A line `// options: OPTION...`
# adds to the compiler's options; the file has nothing before it then, else HEADER, which may be
# precompiled with the options of the command.
set(command "")
set(seen_separator FALSE)
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(i RANGE ${last})
  if(seen_separator)
    list(APPEND command "${CMAKE_ARGV${i}}")
  elseif(CMAKE_ARGV${i} STREQUAL "--")
    set(seen_separator TRUE)
  endif()
endforeach()

file(STRINGS ${source} expected REGEX "^// expect: ")
list(LENGTH expected expectations)
if(expectations GREATER 1)
  message(FATAL_ERROR "${source} has ${expectations} lines `// expect:`, must have one")
endif()
string(REGEX REPLACE "^// expect: " "" expected "${expected}")

file(STRINGS ${source} options REGEX "^// options: ")
string(REGEX REPLACE "^// options: " "" options "${options}")
separate_arguments(options)
if(NOT options)
  set(options -include ${before})
endif()

execute_process(
  COMMAND ${command} ${options} ${source}
  RESULT_VARIABLE result
  OUTPUT_VARIABLE output
  ERROR_VARIABLE output)

if(expectations EQUAL 0)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "the control must compile:\n${output}")
  endif()
elseif(result EQUAL 0)
  message(FATAL_ERROR "compiles, and must not")
elseif(NOT output MATCHES "error: [^\n]*${expected}")
  message(FATAL_ERROR "no error matches `${expected}` in:\n${output}")
endif()
