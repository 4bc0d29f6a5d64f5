package main

import "testing"

func TestRate(t *testing.T) {
	for text, want := range map[string]float64{
		"500": 500, "0.5": 0.5, "100/s": 100, "6000/m": 100, "6000/1m": 100, "3600/h": 1, "1e3": 1000,
	} {
		var r rate
		if err := r.Set(text); err != nil || float64(r) != want {
			t.Errorf("%s is %v/s, %v, want %v/s", text, r, err, want)
		}
	}
	for _, text := range []string{"", "fast", "100/", "100/d", "/s", "100 /s"} {
		if err := new(rate).Set(text); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}
