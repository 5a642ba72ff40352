nibble_test(gradients_test SOURCES gradients_test.cc LINKS nibble_gradients)
