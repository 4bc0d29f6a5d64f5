package engine

import (
	"log/slog"
	"os"
	"testing"
)

// Replace keeps old files, also several of one epoch. At the bound it keeps an empty file, so that the loss is known.
func TestKeptFiles(t *testing.T) {
	const bound = 3
	db, err := Open(Config{
		Dir: t.TempDir(), ReadConns: 1, Synchronous: "off", GroupLimit: 1, MaxKept: bound, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	db.Cancel = func(bool) {}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	for range bound + 1 {
		if err := os.WriteFile(db.Incoming(), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		unlock, err := db.LockWriter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		err = db.writer.conn.exec("create table t (id integer)")
		if err == nil {
			err = db.Replace(7)
		}
		unlock()
		if err != nil {
			t.Fatal(err)
		}
	}
	kept, err := db.Kept()
	if err != nil || len(kept) != bound+1 {
		t.Fatalf("kept are %+v, %v, want %d files", kept, err, bound+1)
	}
	for i, k := range kept {
		if k.Epoch != 7 || k.Empty != (i == bound) {
			t.Errorf("file %d is %+v", i, k)
		}
	}
	for range 2 {
		if err := db.Drop(kept[0].Name); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := db.Kept(); err != nil || len(left) != bound {
		t.Errorf("%d files are left, %v", len(left), err)
	}
}
