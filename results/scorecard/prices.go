package scorecard

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/goccy/go-yaml"

	"github.com/stagebench/stagebench/internal/nesting"
)

// Prices are what hosts cost, by size.
type Prices struct {
	Currency string
	Sizes    []Price // by size, the smallest first
}

// Price is the price of a host of one size.
type Price struct {
	Units float64 `yaml:"units"`
	Hour  float64 `yaml:"hour"` // of an hour
}

// ExamplePrices are made up: a unit costs a cent an hour, and a large host a little more than its share, as with most
// providers.
func ExamplePrices() Prices {
	return Prices{Currency: "USD", Sizes: []Price{
		{1, 0.010}, {2, 0.021}, {3, 0.033}, {4, 0.045}, {8, 0.096}, {16, 0.205},
	}}
}

// Hour returns the price of an hour of a host of that many units: that of the smallest size that is large enough. A
// host that is larger than all sizes costs as much per unit as the largest one.
func (p Prices) Hour(units float64) float64 {
	const rounding = 1e-9
	for _, s := range p.Sizes {
		if s.Units >= units-rounding {
			return s.Hour
		}
	}
	largest := p.Sizes[len(p.Sizes)-1]
	return largest.Hour / largest.Units * units
}

// PerMillion returns the host-hours and the money that a million requests cost at a rate in requests per second. sizes
// are those of the hosts, in units.
func (p Prices) PerMillion(sizes []float64, rps float64) (hostHours, money float64) {
	hours := 1e6 / rps / 3600
	for _, units := range sizes {
		money += hours * p.Hour(units)
	}
	return hours * float64(len(sizes)), money
}

// ReadPrices reads a file of prices. name is the name of the file, for errors.
//
//	currency: EUR
//	sizes:
//	  - {units: 1, hour: 0.012}
//	  - {units: 2, hour: 0.025}
func ReadPrices(text []byte, name string) (p Prices, err error) {
	const maxFile = 1 << 16
	if len(text) > maxFile {
		return p, fmt.Errorf("%s: %d bytes: want at most %d", name, len(text), maxFile)
	}
	if err := nesting.Check(text); err != nil {
		return p, fmt.Errorf("%s: %w", name, err)
	}
	defer func() {
		// The YAML library panics on some malformed input.
		if r := recover(); r != nil {
			err = fmt.Errorf("%s: invalid YAML: %v", name, r)
		}
	}()
	var file struct {
		Currency string  `yaml:"currency"`
		Sizes    []Price `yaml:"sizes"`
	}
	if err := yaml.UnmarshalWithOptions(text, &file, yaml.Strict()); err != nil {
		var at yaml.Error
		if errors.As(err, &at) && at.GetToken() != nil {
			position := at.GetToken().Position
			err = fmt.Errorf("%s:%d:%d: %s", name, position.Line, position.Column, at.GetMessage())
		}
		return p, fmt.Errorf("%w\nwant currency: USD and sizes: a list of {units: 1, hour: 0.01}", err)
	}
	if file.Currency == "" || len(file.Sizes) == 0 {
		return p, fmt.Errorf("%s: currency or sizes is missing\n"+
			"want currency: USD and sizes: a list of {units: 1, hour: 0.01}", name)
	}
	slices.SortFunc(file.Sizes, func(a, b Price) int { return cmp.Compare(a.Units, b.Units) })
	for i, s := range file.Sizes {
		if !(s.Units > 0 && s.Hour > 0) || math.IsInf(s.Units, 0) || math.IsInf(s.Hour, 0) {
			return p, fmt.Errorf("%s: a size of %v units for %v an hour\nwant numbers above 0", name, s.Units, s.Hour)
		}
		if i > 0 && s.Units == file.Sizes[i-1].Units {
			return p, fmt.Errorf("%s: the size of %v units is listed twice\nlist it once", name, s.Units)
		}
	}
	return Prices{Currency: file.Currency, Sizes: file.Sizes}, nil
}
