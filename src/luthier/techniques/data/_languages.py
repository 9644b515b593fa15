"""Programming languages that the code room reads: a row a language, nothing else.

`functions` and `holders` are node types of the language's tree-sitter grammar: what is never cut, and what may hold
further definitions. A `wrapper` is a node around a definition (decorators, `export`, `template`) that belongs to it.
"""

from __future__ import annotations

from dataclasses import dataclass

EXTRA = "code"


@dataclass(frozen=True)
class Language:
    """How one language is read: the module of its grammar, the function in it, and its node types."""

    name: str
    module: str
    suffixes: tuple[str, ...]
    functions: frozenset[str]
    holders: frozenset[str] = frozenset()
    wrappers: frozenset[str] = frozenset()
    # Nodes above a definition that belong to it where no blank line comes between.
    leading: frozenset[str] = frozenset({"comment"})
    grammar: str = "language"


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_C = _set("function_definition struct_specifier union_specifier enum_specifier type_definition preproc_function_def")
_SCRIPT = _set("function_declaration generator_function_declaration method_definition lexical_declaration "
               "variable_declaration")
_TYPED = _SCRIPT | _set("function_signature enum_declaration type_alias_declaration abstract_method_signature")

LANGUAGES = (
    Language("python", "tree_sitter_python", (".py", ".pyi"), _set("function_definition"), _set("class_definition"),
             _set("decorated_definition")),
    Language("javascript", "tree_sitter_javascript", (".js", ".mjs", ".cjs", ".jsx"), _SCRIPT,
             _set("class_declaration"), _set("export_statement")),
    Language("typescript", "tree_sitter_typescript", (".ts", ".mts", ".cts"), _TYPED,
             _set("class_declaration abstract_class_declaration interface_declaration internal_module module"),
             _set("export_statement ambient_declaration expression_statement"), grammar="language_typescript"),
    Language("tsx", "tree_sitter_typescript", (".tsx",), _TYPED,
             _set("class_declaration abstract_class_declaration interface_declaration internal_module module"),
             _set("export_statement ambient_declaration expression_statement"), grammar="language_tsx"),
    Language("java", "tree_sitter_java", (".java",),
             _set("method_declaration constructor_declaration compact_constructor_declaration"),
             _set("class_declaration interface_declaration enum_declaration record_declaration "
                  "annotation_type_declaration"), leading=_set("line_comment block_comment")),
    Language("go", "tree_sitter_go", (".go",), _set("function_declaration method_declaration type_declaration")),
    Language("rust", "tree_sitter_rust", (".rs",),
             _set("function_item function_signature_item struct_item enum_item union_item macro_definition"),
             _set("impl_item trait_item mod_item"), leading=_set("line_comment block_comment attribute_item")),
    Language("c", "tree_sitter_c", (".c", ".h"), _C),
    Language("cpp", "tree_sitter_cpp", (".cc", ".cpp", ".cxx", ".hh", ".hpp", ".hxx"),
             (_C - {"struct_specifier"}) | {"concept_definition", "alias_declaration"},
             _set("class_specifier struct_specifier namespace_definition"), _set("template_declaration")),
    Language("ruby", "tree_sitter_ruby", (".rb",), _set("method singleton_method"),
             _set("class module singleton_class")),
    Language("bash", "tree_sitter_bash", (".sh", ".bash"), _set("function_definition")),
    Language("sql", "tree_sitter_sql", (".sql",),
             _set("create_table create_view create_materialized_view create_function create_trigger create_type "
                  "create_index create_schema create_sequence"), wrappers=_set("statement"),
             leading=_set("comment marginalia")),
)
BY_SUFFIX = {suffix: language for language in LANGUAGES for suffix in language.suffixes}
