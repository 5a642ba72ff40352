# The tests of everything that reads foreign bytes (checkpoints, tokenizers, packed linears) also run under AddressSanitizer
# and UndefinedBehaviorSanitizer. `make test` builds them in a second tree with NIBBLE_SANITIZE=address,undefined, target
# `sanitized_tests`; the release tree, told of it by NIBBLE_SANITIZED_TREE, lists them in its own ctest run.
# Included by tests/CMakeLists.txt after every test program is defined.

set(NIBBLE_SANITIZED_TREE "" CACHE PATH "Build tree with sanitizers whose tests ctest runs here too")
# Test programs by name: parsers, whatever validates what they read, and the fuzz targets' replays.
set(NIBBLE_SANITIZED_PATTERN "^(io|tokenizer|evaluation_tasks|quik|group_int|squeezellm|mixed_2|packed|recipe|base|format|fuzz)")

function(nibble_collect_sanitized result)
  set(found)
  foreach(folder unit conformance fuzz)
    if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${folder}/CMakeLists.txt)
      get_property(targets DIRECTORY ${folder} PROPERTY BUILDSYSTEM_TARGETS)
      foreach(target ${targets})
        get_target_property(type ${target} TYPE)
        if(type STREQUAL "EXECUTABLE" AND target MATCHES "${NIBBLE_SANITIZED_PATTERN}")
          list(APPEND found ${target})
        endif()
      endforeach()
    endif()
  endforeach()
  set(${result} ${found} PARENT_SCOPE)
endfunction()

nibble_collect_sanitized(sanitized)
add_custom_target(sanitized_tests DEPENDS ${sanitized})
if(NIBBLE_SANITIZED_TREE)
  foreach(target ${sanitized})
    get_target_property(folder ${target} BINARY_DIR)
    file(RELATIVE_PATH folder ${CMAKE_BINARY_DIR} ${folder})
    add_test(NAME sanitized.${target} COMMAND ${NIBBLE_SANITIZED_TREE}/${folder}/${target})
    set_tests_properties(sanitized.${target} PROPERTIES TIMEOUT 900 ENVIRONMENT
      "ASAN_OPTIONS=detect_stack_use_after_return=1;UBSAN_OPTIONS=print_stacktrace=1;GTEST_BRIEF=1")
  endforeach()
endif()
