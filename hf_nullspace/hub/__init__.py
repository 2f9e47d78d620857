"""What goes to the Hub beside the weights, and how it is checked."""

from .card_results import card_results
from .manifest import MANIFEST_NAME, compare_with_manifest, publishable_files, write_manifest
from .model_card import TAGS, TRAINING_NAME, markdown_table, write_card
from .publishing import Publisher, publish
from .training_facts import collect_training_facts
from .verification import Verification, verify
