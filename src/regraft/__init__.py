"""Regraft: move pretrained weights into your model, and know that they arrived."""
