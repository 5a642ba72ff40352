nibble_test(recipe_test SOURCES recipe_test.cc LINKS nibble_quantizers)
