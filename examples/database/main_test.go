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
	file := filepath.Join(t.TempDir(), "db")
	s := restarttest.Start(t, "-db", file)
	// One client's requests take longer than the database may take to open.
	path := "/count?slow=1500ms"
	asked := s.RestartUnderLoad(5, 8, func() (restarttest.Ask, error) {
		defer func() { path = "/count" }()
		return s.HTTP(path)()
	})
	s.Stop()
	db, err := bbolt.Open(file, 0o600, nil)
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
