"""Supervised fine-tuning (SFT) on chats, after pretraining and under equal resources."""
