nibble_test(squeezellm_test SOURCES squeezellm_test.cc LINKS nibble_formats)
