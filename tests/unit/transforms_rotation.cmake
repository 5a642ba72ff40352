nibble_test(rotation_test SOURCES rotation_test.cc LINKS nibble_transforms)
