nibble_test(quik_sparse_test SOURCES quik_sparse_test.cc LINKS nibble_formats)
target_include_directories(quik_sparse_test PRIVATE ${CMAKE_SOURCE_DIR}/tests)
