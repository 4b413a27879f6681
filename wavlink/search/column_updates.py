"""Change columns of an index's table: rows keep their order and their vectors."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import lance
import pyarrow
import pyarrow.compute as pc
from lance.fragment import FragmentMetadata
from lance.schema import LanceSchema

from .manifest import METADATA, read_manifest
from .table import Table
from .table_errors import explained


def describe(table: Table, rows: pyarrow.Table) -> None:
    """Set columns of metadata by `path`, all in one commit; sounds that `rows` does not name stay as they are.

    New columns are null until then. Where a column changes its type, all rows are written anew, and `rows` names
    every sound; a vector index must be made again.

    Raises:
        ValueError: another writer's commit has come before, see `Table.repeated`.
    """
    before = {name: table.schema.field(name) for name in table.metadata_columns}
    if any(before.get(field.name, field) != field for field in rows.schema):
        _retype(table, rows)
        return
    with explained(table.index):
        if new := [field for field in rows.schema if field.name not in table.schema.names]:
            table.dataset.add_columns(pyarrow.schema(new))
    if len(rows):
        fragments, fields = _updated(table, rows, "path")
        options = {"fields_modified": fields, "update_mode": "rewrite_columns"}
        table.commit_operation(lance.LanceOperation.Update(updated_fragments=fragments, **options))


def rename(table: Table, paths: Mapping[str, str], **fields: Any) -> None:
    """Give files other paths, and set fields of the manifest, all in one commit; a vector index stays.

    Args:
        paths: the new ones, by the old.

    Raises:
        ValueError: another writer's commit has come before, see `Table.repeated`.
    """
    manifest = dataclasses.replace(table.manifest, **fields)
    schema = LanceSchema.from_pyarrow(table.schema.with_metadata({METADATA: manifest.to_json()}))
    if _numbers(schema) != _numbers(table.dataset.lance_schema):
        raise ValueError(f"another program has changed the columns of {table.index}: index into another folder")
    text = pyarrow.string()
    rows = pyarrow.table({"old": pyarrow.array([*paths], text), "path": pyarrow.array([*paths.values()], text)})
    fragments, _ = _updated(table, rows, "old")
    table.commit_operation(lance.LanceOperation.Merge(fragments, schema))
    table.manifest = read_manifest(table.schema.metadata, table.index)


def _updated(table: Table, rows: pyarrow.Table, key: str) -> tuple[list[FragmentMetadata], list[int]]:
    """Write columns of the rows whose path is in the column `key`; return all fragments and the columns' numbers."""
    fragments, fields = [], set()
    with explained(table.index):
        for fragment in table.dataset.get_fragments():
            updated, modified = fragment.update_columns(rows, left_on="path", right_on=key)
            fragments.append(updated)
            fields |= {*modified}
    table.refuse_short(fragments)
    return fragments, sorted(fields)


def _numbers(schema: LanceSchema) -> dict[str, int]:
    return {field.name(): field.id() for field in schema.fields()}


def _retype(table: Table, values: pyarrow.Table) -> None:
    fields = {field.name: field for field in (*table.schema, *values.schema)} | {"path": table.schema.field("path")}
    manifest = dataclasses.replace(table.manifest, probes=0, recall={})
    schema = pyarrow.schema([*fields.values()], {METADATA: manifest.to_json()})
    values = values.combine_chunks()

    def batches() -> Iterator[pyarrow.RecordBatch]:
        for batch in table.scan(table.schema.names):
            rows = pc.index_in(batch["path"], values["path"])
            columns = {name: batch[name] for name in batch.schema.names}
            columns |= {name: values[name].take(rows) for name in values.column_names if name != "path"}
            arrays = [columns[name] for name in schema.names]
            yield from pyarrow.Table.from_arrays(arrays, schema=schema).to_batches()

    table.replace_all(batches(), schema)
