"""Model + rows + recipe -> trained model, through Hugging Face `Trainer`."""
