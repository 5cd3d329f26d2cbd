# The same as .ci/run.
check:
    .ci/run
