"""Model definitions written for the pairs, in the styles in which people write them."""
