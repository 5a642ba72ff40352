nibble_test(base_test SOURCES base_test.cc LINKS nibble_base)
