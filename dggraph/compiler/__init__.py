"""From a static model to a lowered GraphModule: tracing, profiling, discovery and lowering."""
