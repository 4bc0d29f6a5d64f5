package file

import (
	"reflect"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// decode decodes the first document of a file. Texts are taken as they are written. The YAML library would decode the
// number 1.10 to a text as 1.1, and 010 as 8.
func decode(tree *ast.File, d *document) error {
	if len(tree.Docs) == 0 || tree.Docs[0].Body == nil {
		return nil
	}
	body := asWritten(tree.Docs[0].Body, reflect.TypeFor[document]())
	return yaml.NodeToValue(body, d, yaml.Strict())
}

// asWritten replaces the numbers and booleans in a node by texts where a value of the given type holds a text, and
// returns the new node.
func asWritten(node ast.Node, t reflect.Type) ast.Node {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch n := node.(type) {
	case *ast.AnchorNode:
		n.Value = asWritten(n.Value, t)
	case *ast.TagNode:
		n.Value = asWritten(n.Value, t)
	case *ast.SequenceNode:
		if t.Kind() == reflect.Slice {
			for i := range n.Values {
				n.Values[i] = asWritten(n.Values[i], t.Elem())
			}
		}
	case *ast.MappingNode:
		for _, value := range n.Values {
			asWritten(value, t)
		}
	case *ast.MappingValueNode:
		if in := valueType(n.Key, t); in != nil {
			n.Value = asWritten(n.Value, in)
		}
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode, *ast.BoolNode:
		if t.Kind() == reflect.String {
			return ast.String(n.GetToken())
		}
	}
	return node
}

// valueType returns the type of the value with a key in a struct or map; nil if there is none.
func valueType(key ast.MapKeyNode, t reflect.Type) reflect.Type {
	switch {
	case key.IsMergeKey():
		return t
	case t.Kind() == reflect.Map:
		return t.Elem()
	case t.Kind() == reflect.Struct:
		for field := range t.NumField() {
			if f := t.Field(field); f.Tag.Get("yaml") == key.GetToken().Value {
				return f.Type
			}
		}
	}
	return nil
}
