nibble_test(cuda_layout_test SOURCES cuda_layout_test.cc LINKS nibble_formats)
target_include_directories(cuda_layout_test PRIVATE ${CMAKE_SOURCE_DIR}/tests)
