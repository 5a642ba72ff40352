nibble_test(gradients_test SOURCES gradients_test.cc LINKS nibble_gradients)
nibble_test(sensitivity_test SOURCES sensitivity_test.cc LINKS nibble_pipeline)
