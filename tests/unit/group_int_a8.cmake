nibble_test(group_int_a8_test SOURCES group_int_a8_test.cc LINKS nibble_formats)
target_include_directories(group_int_a8_test PRIVATE ${CMAKE_SOURCE_DIR}/tests)
