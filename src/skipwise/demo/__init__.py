"""The embedded default of `skipwise demo`: a small pretrained model and the text it is judged on."""
