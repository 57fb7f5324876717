// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Orthogonal wavelet filters, as reconstruction low-pass filters of length L: Daubechies' extremal-phase family
/// (<c>db1</c> is Haar's) and least-asymmetric family, and Coifman's (Daubechies 1992, Ten Lectures on Wavelets).
/// The high-pass filter is <c>g[k] = (-1)^k h[L-1-k]</c>.
/// </summary>
internal static class Wavelets
{
    private static readonly double _half = Math.Sqrt(0.5);

    // The shortest members; each is orthonormal with its even shifts, which a test checks.
    private static readonly Dictionary<string, double[]> _filters = new(StringComparer.Ordinal)
    {
        ["haar"] = [_half, _half],
        ["db1"] = [_half, _half],
        ["sym4"] =
        [
            0.032223100604042702, -0.012603967262037833, -0.099219543576847216, 0.29785779560527736,
            0.80373875180591614, 0.49761866763201545, -0.02963552764599851, -0.075765714789273325,
        ],
        ["sym5"] =
        [
            0.019538882735286728, -0.021101834024758855, -0.17532808990845047, 0.016602105764522319, 0.63397896345821192,
            0.72340769040242059, 0.1993975339773936, -0.039134249302383094, 0.029519490925774643, 0.027333068345077982,
        ],
        ["sym6"] =
        [
            -0.007800708325034148, 0.0017677118642428036, 0.044724901770665779, -0.021060292512300564, -0.072637522786462516,
            0.3379294217276218, 0.787641141030194, 0.49105594192674662, -0.048311742585633, -0.11799011114819057,
            0.0034907120842174702, 0.015404109327027373,
        ],
        ["sym7"] =
        [
            0.010268176708511255, 0.0040102448715336634, -0.10780823770381774, -0.14004724044296152, 0.28862963175151463,
            0.76776431700316405, 0.5361019170917628, 0.017441255086855827, -0.049552834937127255, 0.067892693501372697,
            0.03051551316596357, -0.01263630340325193, -0.0010473848886829163, 0.0026818145682578781,
        ],
        ["sym8"] =
        [
            0.0018899503327594609, -0.0003029205147213668, -0.014952258337048231, 0.0038087520138906151, 0.049137179673607506,
            -0.027219029917056003, -0.051945838107709037, 0.3644418948353314, 0.77718575170052351, 0.48135965125837221,
            -0.061273359067658524, -0.14329423835080971, 0.0076074873249176054, 0.031695087811492981, -0.00054213233179114812,
            -0.0033824159510061256,
        ],
        ["coif1"] =
        [
            -0.072732619512853897, 0.33789766245780922, 0.85257202021225542, 0.38486484686420286, -0.072732619512853897,
            -0.01565572813546454,
        ],
        ["coif2"] =
        [
            0.016387336463522112, -0.041464936781759151, -0.067372554721963018, 0.38611006682116222, 0.81272363544554227,
            0.41700518442169254, -0.076488599078306393, -0.059434418646456898, 0.023680171946334084, 0.0056114348193944995,
            -0.0018232088707029932, -0.00072054944536451221,
        ],
        ["coif3"] =
        [
            -0.003793512864491014, 0.0077825964273254182, 0.023452696141836267, -0.0657719112818555, -0.06112339000267287,
            0.40517690240961689, 0.79377722262562056, 0.42848347637761874, -0.07179982161931202, -0.082301927106885983,
            0.034555027573061628, 0.015880544863615904, -0.0090079761366615805, -0.0025745176887502236, 0.0011175187708906016,
            0.00046621696011288631, -7.0983303138141252e-05, -3.4599772836212559e-05,
        ],
    };

    /// <summary>Names of the filters that exist here.</summary>
    public static IReadOnlyList<string> Names { get; } =
        ["haar", .. Enumerable.Range(1, 20).Select(n => $"db{n}"), .. Enumerable.Range(2, 7).Select(n => $"sym{n}"), "coif1", "coif2", "coif3"];

    /// <summary>The reconstruction low-pass filter of a name.</summary>
    /// <param name="name">One of <see cref="Names"/>.</param>
    public static double[] LowPass(string name)
    {
        if (_filters.TryGetValue(name, out double[]? known)) return known;
        // The first two members of the least-asymmetric family are Daubechies' own.
        string number = name.StartsWith("db", StringComparison.Ordinal) ? name[2..] : name[3..];
        return Daubechies(int.Parse(number, System.Globalization.CultureInfo.InvariantCulture));
    }

    /// <summary>The reconstruction high-pass filter that belongs to a low-pass filter.</summary>
    /// <param name="low">Low-pass filter.</param>
    public static double[] HighPass(double[] low) =>
        [.. Enumerable.Range(0, low.Length).Select(k => (k % 2 == 0 ? 1 : -1) * low[low.Length - 1 - k])];

    // H(z) = (1 + z)^n Q(z), |Q|² = Σ_k C(n-1+k, k) y^k with y = (2 - z - 1/z) / 4; of each pair of roots the inner one.
    private static double[] Daubechies(int n)
    {
        var square = new double[n];
        square[0] = 1;
        for (int k = 1; k < n; k++) square[k] = square[k - 1] * (n - 1 + k) / k;
        System.Numerics.Complex[] filter = [1];
        for (int i = 0; i < n; i++) filter = Times(filter, -1);
        foreach (System.Numerics.Complex y in Roots(square))
        {
            System.Numerics.Complex half = 1 - (2 * y), root = System.Numerics.Complex.Sqrt((half * half) - 1);
            System.Numerics.Complex inner = (half + root).Magnitude < 1 ? half + root : half - root;
            filter = Times(filter, inner);
        }
        double scale = Math.Sqrt(2) / filter.Sum(c => c.Real);
        return [.. filter.Select(c => c.Real * scale)];
    }

    // p(z) · (1 - r z), coefficients from the lowest power.
    private static System.Numerics.Complex[] Times(System.Numerics.Complex[] p, System.Numerics.Complex r)
    {
        var product = new System.Numerics.Complex[p.Length + 1];
        for (int i = 0; i < p.Length; i++)
        {
            product[i] += p[i];
            product[i + 1] -= r * p[i];
        }
        return product;
    }

    // All roots at once, by Weierstrass' iteration.
    private static System.Numerics.Complex[] Roots(double[] polynomial)
    {
        int degree = polynomial.Length - 1;
        double lead = polynomial[degree];
        var roots = new System.Numerics.Complex[degree];
        for (int i = 0; i < degree; i++) roots[i] = System.Numerics.Complex.Pow(new System.Numerics.Complex(0.4, 0.9), i);
        for (int round = 0; round < 500; round++)
            for (int i = 0; i < degree; i++)
            {
                System.Numerics.Complex value = lead, others = lead;
                for (int k = degree - 1; k >= 0; k--) value = (value * roots[i]) + polynomial[k];
                for (int j = 0; j < degree; j++)
                    if (j != i) others *= roots[i] - roots[j];
                roots[i] -= value / others;
            }
        return roots;
    }
}
