nibble_test(group_int_test SOURCES group_int_test.cc LINKS nibble_formats)
