package main

import (
	"path/filepath"
	"strconv"
	"testing"

	"example.com/grace-examples/restarttest"
	"go.etcd.io/bbolt"
)

func TestEachRequestIsCountedOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	s := restarttest.Start(t, "-db", path)
	asked := s.RestartUnderLoad(5, 8, s.HTTP("/count"))
	s.Stop()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.View(func(tx *bbolt.Tx) error {
		if got := string(tx.Bucket([]byte("counts")).Get([]byte("requests"))); got != strconv.Itoa(asked) {
			t.Errorf("%s requests are counted of %d", got, asked)
		}
		return nil
	})
}
