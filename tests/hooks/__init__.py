import pytest

pytest.register_assert_rewrite("tests.hooks.together")  # so that its checks tell what they compared
