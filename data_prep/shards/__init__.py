"""Prepared folders: Arrow files of token ids and the manifest that describes them."""
