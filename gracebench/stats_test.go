package main

import (
	"math"
	"slices"
	"testing"
	"time"
)

func TestPercentileIsAMeasuredValue(t *testing.T) {
	var hundred []time.Duration
	for i := 1; i <= 100; i++ {
		hundred = append(hundred, time.Duration(i))
	}
	for _, test := range []struct {
		sorted []time.Duration
		p      float64
		want   time.Duration
	}{
		{nil, 50, 0},
		{[]time.Duration{7}, 0, 7},
		{[]time.Duration{7}, 50, 7},
		{[]time.Duration{7}, 100, 7},
		{[]time.Duration{1, 2, 3}, 50, 2},
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 99.5, 100},
		{hundred, 100, 100},
	} {
		if got := percentile(test.sorted, test.p); got != test.want {
			t.Errorf("percentile %v of %d values = %d, want %d", test.p, len(test.sorted), got, test.want)
		}
	}
}

func TestPhaseOfARequest(t *testing.T) {
	const signal, gone = time.Second, 2 * time.Second
	for _, test := range []struct {
		name                       string
		began, ended, signal, gone time.Duration
		want                       string
	}{
		{"no restart yet", 1, 2, 0, 0, "before"},
		{"ended just before the signal was noted", signal - 2, signal - 1, signal, 0, "before"},
		{"under way at the signal", signal - 1, signal + 1, signal, 0, "during"},
		{"began during the restart and took long", signal + during, signal + time.Minute, signal, gone, "during"},
		{"the old process ended soon", signal + during, signal + during + 1, signal, signal + 1, "during"},
		{"the old process was there", signal + during + 1, signal + during + 2, signal, 0, "drain"},
		{"the one before has ended", signal + during + 1, signal + during + 2, signal, signal - 1, "drain"},
		{"the old process was still there", gone - 1, gone + 1, signal, gone, "drain"},
		{"began later", gone + 1, gone + 2, signal, gone, "after"},
	} {
		var p phases
		p.add(test.began, test.ended, test.signal, test.gone)
		got := map[string]int{"before": len(p.before), "during": len(p.during), "drain": len(p.drain), "after": len(p.after)}
		if got[test.want] != 1 || got["before"]+got["during"]+got["drain"]+got["after"] != 1 {
			t.Errorf("%s: counted as %v, want %s", test.name, got, test.want)
		}
	}
}

func TestRatioIsOfTheWorsePhase(t *testing.T) {
	of := func(n int, d time.Duration) []time.Duration { return slices.Repeat([]time.Duration{d}, n) }
	for _, test := range []struct {
		name string
		p    phases
		want float64
	}{
		{"nothing", phases{}, 0},
		{"during", phases{before: of(5, 1e6), during: of(5, 3e6), after: of(5, 2e6)}, 1.5},
		{"drain", phases{before: of(5, 2e6), during: of(5, 3e6), drain: of(enough, 4e6)}, 2},
		{"a short drain", phases{after: of(5, 2e6), during: of(5, 3e6), drain: of(enough-1, 4e6)}, 1.5},
	} {
		if got := test.p.ratio(); got != test.want {
			t.Errorf("%s: ratio %v, want %v", test.name, got, test.want)
		}
	}
}

func TestEstimate(t *testing.T) {
	// For 10 values the interval from the 2nd to the 9th holds the median with 97.9 %, that from the 3rd to the 8th
	// only with 89.1 %.
	var ten []float64
	for i := 10; i >= 1; i-- {
		ten = append(ten, float64(i))
	}
	if got, want := estimateOf(ten), (estimate{5.5, 2, 9}); got != want {
		t.Errorf("estimate of 1 to 10 = %v, want %v", got, want)
	}
	if got, want := estimateOf([]float64{3, 1, 2}), (estimate{2, 1, 3}); got != want {
		t.Errorf("estimate of three values = %v, want all of their range, %v", got, want)
	}
	if !slices.Equal(ten[:2], []float64{10, 9}) {
		t.Error("the measurements were reordered")
	}
	many := make([]float64, 3000)
	for i := range many {
		many[i] = float64(i)
	}
	// The interval of a large sample is about 0.98 times the root of n to either side.
	if got := estimateOf(many); math.Abs(got.High-got.Median-0.98*math.Sqrt(3000)) > 3 {
		t.Errorf("estimate of 3000 values = %v", got)
	}
}

func TestSummaryIsInMilliseconds(t *testing.T) {
	got := summarize([]time.Duration{3 * time.Millisecond, 1500 * time.Microsecond, time.Second})
	if want := (summary{3, 1000, 1000}); got != want {
		t.Errorf("summary %v, want %v", got, want)
	}
}
