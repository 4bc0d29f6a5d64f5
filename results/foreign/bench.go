package foreign

import (
	"errors"
	"io"

	"golang.org/x/perf/benchfmt"

	"github.com/stagebench/stagebench/results/compare"
)

// readBenchmarks reads Go benchmark text. Values are in the base units of benchstat, such as seconds instead of
// nanoseconds. Results of one package, name and unit are the samples of one series.
func readBenchmarks(r io.Reader) (Result, error) {
	reader := benchfmt.NewReader(r, "")
	type key struct{ pkg, name, unit string }
	places := map[key]int{}
	result := Result{Tool: Benchmarks}
	for reader.Scan() {
		switch record := reader.Result().(type) {
		case *benchfmt.SyntaxError:
			result.Warnings = append(result.Warnings, "a line could not be read: "+record.Error())
		case *benchfmt.Result:
			for _, v := range record.Values {
				k := key{record.GetConfig("pkg"), record.Name.String(), v.Unit}
				place, known := places[k]
				if !known {
					place = len(result.Series)
					places[k] = place
					result.Series = append(result.Series, compare.Series{Package: k.pkg, Name: k.name, Unit: k.unit})
				}
				series := &result.Series[place]
				series.Values = append(series.Values, v.Value)
				series.Invalid = series.Invalid || record.GetConfig("valid") == "no"
			}
		}
	}
	if err := reader.Err(); err != nil {
		return Result{}, err
	}
	if len(result.Series) == 0 {
		return Result{}, errors.New("no benchmark line could be read\nwant what go test -bench writes")
	}
	for i := range result.Series {
		result.Series[i].Better = reader.Units().GetBetter(result.Series[i].Unit)
	}
	return result, nil
}
