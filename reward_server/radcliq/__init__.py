"""RadCliQ's components from published weights, by batched inference of our own (`reward_server.backends.published`)."""
