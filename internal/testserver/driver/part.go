package driver

import (
	"flag"
	"fmt"
	"iter"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// EnvTest is the variable that says how much of the large tables and loops is played:
// with "all" every row, else some; with -short, only a few tests start processes.
const EnvTest = "GRACE_TEST"

var all = os.Getenv(EnvTest) == "all"

// Part reports whether the i-th row of a table, from 0 on, is played: one in so many is
// where not all are.
func Part(i, of int) bool {
	switch {
	case all:
		return true
	case testing.Short():
		return i == 0
	default:
		return i%of == 0
	}
}

// Times returns how many of n times something is done: one in so many where not all are.
func Times(n, of int) int {
	switch {
	case all:
		return n
	case testing.Short():
		return 1
	default:
		return max(n/of, 1)
	}
}

// NotShort skips the test with -short.
func NotShort(tb testing.TB) {
	tb.Helper()
	if testing.Short() {
		tb.Skip("takes too long for -short")
	}
}

// alsoShort has the names of the tests that called AlsoShort.
var alsoShort sync.Map

// AlsoShort lets the test start processes with -short, too.
func AlsoShort(tb testing.TB) { alsoShort.Store(tb.Name(), true) }

func skipIfShort(tb testing.TB) {
	tb.Helper()
	name, _, _ := strings.Cut(tb.Name(), "/")
	if _, also := alsoShort.Load(name); testing.Short() && !also {
		tb.Skip("starts processes, which takes too long for -short")
	}
}

// OnlyAll skips the test where not all is played.
func OnlyAll(tb testing.TB) {
	tb.Helper()
	if !all {
		tb.Skipf("takes too long without %s=all", EnvTest)
	}
}

// sideBySide lets more tests run at a time than there are processors, since they wait more
// than they work, unless a flag says how many.
func sideBySide() {
	flag.Parse()
	tests := 8
	switch {
	case testing.Short(): // hardly any starts processes
		tests = 64
	case !all && !raceEnabled:
		tests = 16
	}
	if f := flag.Lookup("test.parallel"); f != nil && f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		f.Value.Set(strconv.Itoa(max(tests, runtime.GOMAXPROCS(0))))
	}
}

// Some returns the rows of a table that are played, see Part.
func Some[T any](rows []T, of int) (some []T) {
	for i, row := range rows {
		if Part(i, of) {
			some = append(some, row)
		}
	}
	return some
}

// SomeOf is Some for a table whose rows have names: in the order of those.
func SomeOf[V any](rows map[string]V, of int) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, name := range Some(slices.Sorted(maps.Keys(rows)), of) {
			if !yield(name, rows[name]) {
				return
			}
		}
	}
}

// Each plays the rows side by side, each in a test of its own.
func Each[T any](t *testing.T, rows []T, play func(t *testing.T, row T)) {
	for _, row := range rows {
		t.Run(fmt.Sprint(row), func(t *testing.T) {
			t.Parallel()
			play(t, row)
		})
	}
}
