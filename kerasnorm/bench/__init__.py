"""Speed, measured fairly: contenders take turns in one go, on the same net, data and batches."""
