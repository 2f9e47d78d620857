"""What goes to the Hub beside the weights."""

from .model_card import TAGS, add_card_section, build_card_section, markdown_table
