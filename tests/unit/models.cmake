nibble_test(models_test SOURCES models_test.cc LINKS nibble_models)
