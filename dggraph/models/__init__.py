"""Backbones: registry, weights, preprocessing, small ResNets and feature pyramids."""
