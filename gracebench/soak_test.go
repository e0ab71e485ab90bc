package main

import (
	"slices"
	"testing"
)

func TestOneDescriptorMoreIsGrowth(t *testing.T) {
	const mb = 1 << 20
	first := soakSample{InUse: 4 * mb, Resident: 14 * mb, Descriptors: 76, Goroutines: 72, Processes: 1}
	if grown := growths(first, first); grown != nil {
		t.Errorf("the same has grown: %v", grown)
	}
	last := soakSample{InUse: 4*mb + mb/2, Resident: 13 * mb, Descriptors: 70, Goroutines: 74, Processes: 1}
	if grown := growths(first, last); grown != nil {
		t.Errorf("noise has grown: %v", grown)
	}
	for what, last := range map[string]soakSample{
		"heap and stacks from 4,194,304 to 8,388,608":   {InUse: 8 * mb},
		"resident memory from 14,680,064 to 20,971,520": {Resident: 20 * mb},
		"descriptors from 76 to 77":                     {Descriptors: 77},
		"goroutines from 72 to 75":                      {Goroutines: 75},
		"processes from 1 to 2":                         {Processes: 2},
	} {
		if grown := growths(first, last); !slices.Equal(grown, []string{what}) {
			t.Errorf("%v, want %s", grown, what)
		}
	}
}

func TestSoakOfAFewRestartsIsFlat(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	if !procKnown {
		t.Skip("needs /proc")
	}
	samples, _, err := runSoak(t.Context(), cfg, 4)
	if err != nil {
		t.Fatal(err)
	}
	for i := range samples {
		samples[i].Resident = 0 // the race detector's own comes and goes
	}
	if grown := growths(samples[0], samples[len(samples)-1]); grown != nil {
		t.Errorf("grown in 4 restarts: %v", grown)
	}
}
