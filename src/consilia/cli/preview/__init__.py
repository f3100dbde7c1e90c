"""The contact sheet of a hospital's images: one HTML file, in English and Chinese, that loads nothing from anywhere."""
