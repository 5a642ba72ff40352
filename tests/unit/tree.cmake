# The rules of the tree itself; skipped where there is no git checkout.
add_test(NAME tree.rules COMMAND ${CMAKE_SOURCE_DIR}/scripts/check_tree.sh)
set_tests_properties(tree.rules PROPERTIES SKIP_RETURN_CODE 77)
