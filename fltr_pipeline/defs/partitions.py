"""The partitions: one per dataset, its key the dataset's id. Documents are never partitions."""

import dagster as dg

DATASET_PARTITIONS = dg.DynamicPartitionsDefinition(name="dataset")
