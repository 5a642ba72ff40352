nibble_test(quik_test SOURCES quik_test.cc LINKS nibble_formats)
target_include_directories(quik_test PRIVATE ${CMAKE_SOURCE_DIR}/tests)
