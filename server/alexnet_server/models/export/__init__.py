"""Writing a model repository: serving graph, weights, configs, labels, model card. Free of torch."""
