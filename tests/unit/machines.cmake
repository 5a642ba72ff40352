# The built program on machines other than this one: a processor without AVX (emulated), one with a GPU. Each prints why when
# it is skipped.
if(TARGET nibble)
  add_test(NAME program.baseline_cpu
           COMMAND ${CMAKE_SOURCE_DIR}/tests/check_baseline_cpu.sh $<TARGET_FILE:nibble> ${CMAKE_SOURCE_DIR}/tests/fixtures)
  add_test(NAME cuda.doctor COMMAND ${CMAKE_SOURCE_DIR}/tests/check_gpu.sh $<TARGET_FILE:nibble>)
  set_tests_properties(program.baseline_cpu cuda.doctor PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 300)
endif()
